"""People: one who signs in with an e-mail address and is shown by a display name."""

from typing import TYPE_CHECKING, Any, ClassVar

from django.contrib.auth.base_user import AbstractBaseUser, BaseUserManager
from django.contrib.auth.models import PermissionsMixin
from django.db import models, transaction
from django.db.models.functions import Lower
from django.utils import timezone

from settings import text

if TYPE_CHECKING:
    from django.db.models.fields.related_descriptors import RelatedManager


class UserManager(BaseUserManager["User"]):
    """Makes users by e-mail address."""

    def create_user(self, email: str, password: str | None = None, **fields: Any) -> "User":
        """A saved user; without a password, one that cannot sign in until it is reset.

        Raises ValueError if `email` is empty.
        """
        if not email:
            raise ValueError("A user needs an e-mail address.")
        user = self.model(email=email.strip().lower(), **fields)
        user.set_password(password)
        user.save(using=self._db)
        return user

    def create_superuser(self, email: str, password: str | None = None, **fields: Any) -> "User":
        """A saved user who may do everything.

        The address counts as verified: whoever may run this could verify it anyhow, and needs no mail server to
        sign in for the first time.
        """
        with transaction.atomic(using=self._db):
            user = self.create_user(email, password, **fields | {"is_staff": True, "is_superuser": True})
            user.emailaddress_set.create(email=user.email, verified=True, primary=True)
        return user

    def get_by_natural_key(self, username: str | None) -> "User":
        return self.get(email=(username or "").lower())


class User(AbstractBaseUser, PermissionsMixin):
    # Stored in lower case: allauth and the manager look it up so.
    email = models.EmailField("e-mail address", unique=True, max_length=254, validators=[text.one_line])
    display_name = models.CharField(max_length=80, blank=True, validators=[text.name])
    # The name of a file below MEDIA_ROOT, random, and written by accounts.avatars alone.
    avatar = models.FileField(blank=True, max_length=100, editable=False)
    is_staff = models.BooleanField("may enter the admin", default=False)
    is_active = models.BooleanField("may sign in", default=True)
    date_joined = models.DateTimeField(default=timezone.now, editable=False)

    emailaddress_set: "RelatedManager[Any]"  # allauth's: the address, and whether it is verified

    USERNAME_FIELD = "email"
    EMAIL_FIELD = "email"
    REQUIRED_FIELDS: ClassVar[list[str]] = []

    objects = UserManager()

    class Meta:
        constraints = [
            models.UniqueConstraint(
                Lower("email"),
                name="user_email_unique_in_any_case",
                violation_error_message="There is a user with this e-mail address already.",
            )
        ]

    def __str__(self) -> str:
        return self.get_full_name()

    def clean(self) -> None:
        self.email = self.email.lower()

    def get_full_name(self) -> str:
        """The display name, or else what stands before the @ of the address."""
        return self.display_name or self.email.partition("@")[0]

    get_short_name = get_full_name


class ResetLink(models.Model):
    """The link to reset a password that a person was sent last: a newer one takes its place."""

    user = models.OneToOneField(User, models.CASCADE, primary_key=True, related_name="reset_link")
    address = models.EmailField(max_length=254)  # where it was sent
    nonce = models.CharField(max_length=32)

    def __str__(self) -> str:
        return f"Link to reset the password of user {self.user_id}"
