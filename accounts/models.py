"""Users, who sign in with an email address and are shown by a display name."""

from typing import TYPE_CHECKING, Any, ClassVar

from django.contrib.auth.base_user import AbstractBaseUser, BaseUserManager
from django.contrib.auth.models import PermissionsMixin
from django.db import models, transaction
from django.db.models.functions import Lower
from django.utils import timezone
from django.utils.crypto import salted_hmac

from settings import text

if TYPE_CHECKING:
    from django.db.models.fields.related_descriptors import RelatedManager


# That of AbstractBaseUser, so that raising the generation is the only difference.
SESSION_SALT = "django.contrib.auth.models.AbstractBaseUser.get_session_auth_hash"


class UserManager(BaseUserManager["User"]):
    """Creates users by email address."""

    def create_user(self, email: str, password: str | None = None, **fields: Any) -> "User":
        """Creates and returns a user; without a password the user cannot sign in until it is reset.

        Raises ValueError if `email` is empty.
        """
        if not email:
            raise ValueError("A user requires an email address.")
        user = self.model(email=email.strip().lower(), **fields)
        user.set_password(password)
        user.save(using=self._db)
        return user

    def create_superuser(self, email: str, password: str | None = None, **fields: Any) -> "User":
        """Creates and returns a user with all permissions, whose address counts as verified.

        Whoever can run this could verify it anyway, and must be able to sign in before a mail server is set up.
        """
        with transaction.atomic(using=self._db):
            user = self.create_user(email, password, **fields | {"is_staff": True, "is_superuser": True})
            user.emailaddress_set.create(email=user.email, verified=True, primary=True)
        return user

    def get_by_natural_key(self, username: str | None) -> "User":
        return self.get(email=(username or "").lower())


class User(AbstractBaseUser, PermissionsMixin):
    # Stored in lower case, as allauth and the manager look it up that way.
    email = models.EmailField("email address", unique=True, max_length=254, validators=[text.one_line])
    display_name = models.CharField(max_length=80, blank=True, validators=[text.name])
    # The random name of a file below MEDIA_ROOT; only accounts.avatars writes it.
    avatar = models.FileField(blank=True, max_length=100, editable=False)
    is_staff = models.BooleanField("staff status", default=False)
    is_active = models.BooleanField("active", default=True)
    date_joined = models.DateTimeField(default=timezone.now, editable=False)
    session_generation = models.PositiveIntegerField(default=0, editable=False)  # raised to end every session

    emailaddress_set: "RelatedManager[Any]"  # allauth's: each address, and whether it is verified

    USERNAME_FIELD = "email"
    EMAIL_FIELD = "email"
    REQUIRED_FIELDS: ClassVar[list[str]] = []

    objects = UserManager()

    class Meta:
        permissions = [("manage_members", "Can manage members")]
        constraints = [
            models.UniqueConstraint(
                Lower("email"),
                name="user_email_unique_in_any_case",
                violation_error_message="A user with this email address already exists.",
            )
        ]

    def __str__(self) -> str:
        return self.get_full_name()

    def clean(self) -> None:
        self.email = self.email.lower()

    def get_full_name(self) -> str:
        """Returns the display name, or else the part of the address before the @."""
        return self.display_name or self.email.partition("@")[0]

    get_short_name = get_full_name

    def _get_session_auth_hash(self, secret: str | None = None) -> str:
        """Returns what a session must hold to be valid: Django's hash of the password, and of the generation if any."""
        value = f"{self.password} {self.session_generation}" if self.session_generation else self.password
        return salted_hmac(SESSION_SALT, value, secret=secret, algorithm="sha256").hexdigest()


class ResetLink(models.Model):
    """The latest password reset link sent to a user; a newer one replaces it."""

    user = models.OneToOneField(User, models.CASCADE, primary_key=True, related_name="reset_link")
    address = models.EmailField(max_length=254)  # where it was sent
    nonce = models.CharField(max_length=32)

    def __str__(self) -> str:
        return f"Password reset link of user {self.user_id}"


class Invitation(models.Model):
    """An invitation for an address, with the role that whoever accepts it gets. Only a hash of its key is stored."""

    email = models.EmailField(max_length=254, validators=[text.one_line])  # in lower case, as User.email
    role = models.CharField(max_length=20, blank=True)  # accounts.roles.Role
    environment = models.CharField(max_length=50, blank=True)  # empty: everywhere
    digest = models.CharField(max_length=64, unique=True, editable=False)  # SHA-256 of the key, in hex
    created = models.DateTimeField()
    expires = models.DateTimeField()
    # Empty if a command made it. Invitations of somebody who is deleted go with them.
    invited_by = models.ForeignKey(User, models.CASCADE, null=True, blank=True, related_name="+")
    revoked = models.DateTimeField(null=True, blank=True)
    accepted = models.DateTimeField(null=True, blank=True)

    class Meta:
        ordering = ("-created", "-pk")
        indexes = [models.Index(fields=["email"], name="accounts_invitation_by_email")]

    def __str__(self) -> str:
        return f"Invitation for {self.email}"
